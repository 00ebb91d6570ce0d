"""The app's tabs, a file each: widgets and layout only; every figure comes from the same functions as the CLI's."""
