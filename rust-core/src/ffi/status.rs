//! What the exported functions return.

use crate::monitor::Error;

/// What became of a call. Values are never given another meaning, and never given up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    non_camel_case_types,
    reason = "exported functions and types take C names"
)]
pub enum cl_status {
    /// It was done.
    CL_STATUS_OK = 0,
    /// A pointer that may not be NULL is.
    CL_STATUS_NULL = 1,
    /// A text is not UTF-8.
    CL_STATUS_NOT_UTF8 = 2,
    /// The configuration is wrong. What is wrong is in the log.
    CL_STATUS_CONFIGURATION = 3,
    /// The monitor could not be started. Why is in the log.
    CL_STATUS_INIT = 4,
    /// This is not the time for it.
    CL_STATUS_STATE = 5,
    /// The monitor has failed before and is out of service.
    CL_STATUS_FAILED = 6,
    /// The call ended in a panic. The monitor is out of service.
    CL_STATUS_PANIC = 7,
    /// It may not be done.
    CL_STATUS_REFUSED = 8,
}

impl From<Error> for cl_status {
    fn from(error: Error) -> Self {
        match error {
            Error::Configuration => cl_status::CL_STATUS_CONFIGURATION,
            Error::Init => cl_status::CL_STATUS_INIT,
            Error::State => cl_status::CL_STATUS_STATE,
            Error::Failed => cl_status::CL_STATUS_FAILED,
        }
    }
}

impl From<Result<(), cl_status>> for cl_status {
    fn from(result: Result<(), cl_status>) -> Self {
        result.err().unwrap_or(cl_status::CL_STATUS_OK)
    }
}
