//! Flightcache.
