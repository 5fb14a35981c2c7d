//! What the bytes of frames must be.
