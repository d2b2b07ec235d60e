"""Programs for the work on the tests themselves."""
