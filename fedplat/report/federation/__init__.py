"""The privacy report of a federation: from what its silos have signed, for all of them together."""
