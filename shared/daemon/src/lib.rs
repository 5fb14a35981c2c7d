//! What both daemons need around the pure session core: keys, links, control socket, configuration.
