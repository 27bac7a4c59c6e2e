//! A Lua state with its full library.

use mlua::{Lua, LuaOptions, StdLib};

/// A state in which rules can do whatever the daemon can. Only where the administrator asks for it.
pub(crate) fn full_library(options: LuaOptions) -> Lua {
    // SAFETY: What the full library adds can break the state if it is misused on purpose, by files that only the
    // administrator writes, who has asked for it. C modules are taken away before any of them is loaded.
    unsafe { Lua::unsafe_new_with(StdLib::ALL, options) }
}

// The crate that builds Lua leaves it to the final link, which is that of the daemon's build and knows nothing of it. So
// Lua comes with the static library.
#[cfg(feature = "lua54")]
#[link(name = "lua5.4", kind = "static", modifiers = "+bundle")]
unsafe extern "C" {}
#[cfg(feature = "luajit")]
#[link(name = "luajit", kind = "static", modifiers = "+bundle")]
unsafe extern "C" {}
