"""The commands of `coffee-rt`, a module a subject; coffee_rt.cli puts them together."""
