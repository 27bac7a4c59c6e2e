//! End-to-end tests against real daemons, each in a directory of its own.

mod announcements;
mod busy;
mod chains;
mod check;
mod churn;
mod client;
mod documents;
mod gate;
mod harness;
mod lifecycle;
mod onfailure;
mod listing;
mod others;
mod peers;
mod refusals;
mod registrations;
mod regressions;
mod startup;
mod stuck;
mod storm;
mod threads;
mod values;
