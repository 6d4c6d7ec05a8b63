//! Text that many lines have in common, held once.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Access, Columns};

/// The names that were read so far.
#[derive(Default)]
pub(super) struct Shared {
    texts: HashSet<Arc<str>>,
    lists: HashSet<Columns>,
}

impl Shared {
    /// Puts what is known already in place of what the line brought, and leaves no room beyond what it holds.
    pub(super) fn share(&mut self, access: &mut Access) {
        access.url = self.text(&access.url);
        access.columns = self.list(&access.columns);
        access.bytes.shrink_to_fit();
        access.hit.iter_mut().for_each(Vec::shrink_to_fit);
    }

    fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        self.texts.insert(Arc::clone(text));
        Arc::clone(text)
    }

    fn list(&mut self, list: &Columns) -> Columns {
        if let Some(known) = self.lists.get(list) {
            return Arc::clone(known);
        }
        let list: Columns = list.iter().map(|name| self.text(name)).collect();
        self.lists.insert(Arc::clone(&list));
        list
    }
}

/// A URL in JSON.
pub(super) mod text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::trace) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(in crate::trace) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Arc::from)
    }
}

/// Columns in JSON.
pub(super) mod list {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Columns;

    pub(in crate::trace) fn serialize<S: Serializer>(list: &Columns, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|name| &**name))
    }

    pub(in crate::trace) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Columns, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Ok(names.into_iter().map(Arc::from).collect())
    }
}
