"""What ``speed.py`` measures, one module for each of its subcommands."""
