"""Help with the first steps: guess the tasks of tables, write a configuration, check data and machine."""
