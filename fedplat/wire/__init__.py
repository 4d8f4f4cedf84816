"""What travels: typed, versioned messages in Flower's records, and the bodies of our own routes.

`codec` needs Flower; the rest does not, and a training worker never loads it.
"""
