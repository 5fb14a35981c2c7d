//! The client daemon without I/O: packets and frames in, packets and frames out.
