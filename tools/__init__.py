"""What looks after the project and is no part of it: no install contains it."""
