"""The words that a program or an objective is written in."""
