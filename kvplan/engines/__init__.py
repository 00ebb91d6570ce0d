"""What serving engines are told and what they decide by themselves: flags, defaults, spellings."""
