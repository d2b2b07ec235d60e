"""The version of the distribution, the executable and the library: one number."""

VERSION = "0.1.0"
