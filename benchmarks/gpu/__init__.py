"""What this code does on a GPU, measured by one command; without a GPU the same code runs at tiny sizes."""
