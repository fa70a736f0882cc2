"""The nightly jobs' clock. Any number may run; a slot takes effect once."""
