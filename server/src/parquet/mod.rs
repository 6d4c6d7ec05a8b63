//! Parquet: footers, pruning, and decoding column chunks whole.
//!
//! ```text
//!  object --footers.rs--> Footer --prune.rs--> row groups --decode.rs--> Chunk (arrays)
//! ```

mod bloom;
mod chunk;
mod decode;
mod footer;
mod footers;
mod prune;
mod schema;
mod thrift;

pub use bloom::BloomFilters;
pub use chunk::{Chunk, SLICE_ROWS};
pub use decode::{Bands, DecodeError, decode_bands, decode_chunk};
pub use footer::Footer;
pub(crate) use footer::decoder_panic;
pub use footers::Footers;
pub use prune::prune_row_groups;
pub use schema::{announced_schema, check_widths, fixed_bytes};
