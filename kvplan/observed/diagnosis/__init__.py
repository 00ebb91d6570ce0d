"""`why`: what a log, an error message or a metrics page complains of, its causes in words, the flags that mend them."""
