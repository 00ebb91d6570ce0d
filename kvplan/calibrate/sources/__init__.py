"""Published kernel tables and step times as measurement rows. You bring the files; kvplan ships none."""
