"""The top: everything that knows Ray, the terminal or a person."""
