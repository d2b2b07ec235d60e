"""The version that the distribution, the executable and the library share."""

VERSION = "0.1.0"
