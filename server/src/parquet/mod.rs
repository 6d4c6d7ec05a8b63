//! Parquet: footers, pruning, and decoding column chunks whole.
//!
//! ```text
//!  object --footers.rs--> Footer --prune.rs--> row groups --decode.rs--> Chunk (arrays)
//!                                                        \--row_group_file.rs--> a Parquet file of one row group
//! ```

mod bloom;
mod chunk;
mod decode;
mod footer;
mod footers;
mod prune;
mod row_group_file;
mod schema;

pub use bloom::BloomFilters;
pub use chunk::{Chunk, SLICE_ROWS};
pub use decode::{Bands, DecodeError, decode_bands, decode_chunk};
pub use footer::Footer;
pub(crate) use footer::decoder_panic;
pub use footers::{Elsewhere, Footers, Told, Wanted, nowhere};
pub use prune::prune_row_groups;
pub use row_group_file::{RowGroupFile, RowGroupLayout, row_group_layout};
pub use schema::{announced_schema, check_widths, fixed_bytes};
