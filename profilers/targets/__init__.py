"""What a person can name as a target, one file per kind; `profilers/target.py` chooses among them."""
