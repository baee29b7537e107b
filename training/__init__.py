"""What every Lightning run of this project shares."""
