//! What only Redis can do to streams: scripts that are forgotten, keys that vanish, data that comes back older.
