//! Harness for the end-to-end tests: real daemons, each in a private directory.
