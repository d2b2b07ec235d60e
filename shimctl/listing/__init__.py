"""The containers of this host as rows for people: names, images, ages, filters, formats.

``collect`` reads the bundles, ``measuring`` asks the shims for their figures; the other
modules are pure.
"""
