"""Reports as HTML pages: each is one file that loads nothing, runs only its own script, and reads without it too."""
