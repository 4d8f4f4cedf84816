"""What travels: typed, versioned messages in Flower's records, and the bodies of our own routes."""

from fedplat.wire.codec import Parcel, from_record, to_record

__all__ = ["Parcel", "from_record", "to_record"]
