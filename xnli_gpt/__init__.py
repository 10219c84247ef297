"""The rooms that the entry points are made of; none of them imports a file of the upper floor."""
