"""One file per command of the CLI; each is imported only when it is called. No arithmetic here."""
