"""Good files of each kind, how they are changed, opened and checked: for attacks_files."""
