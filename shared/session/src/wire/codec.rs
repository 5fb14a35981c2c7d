//! Bytes of frames: encoding, and checked decoding that cannot panic.
