//! Which model a client means: its id, an alias, `auto`, or an id with a wish (`:cheap`, `:fast`).
//!
//! A full id that is on offer always means itself: `llama3:8b` is an id, and so would `x:fast` be if
//! somebody sold it. Pure; called when a request is routed.

use crate::router::Prefer;
use crate::types::ModelId;

/// The model that stands for "one that I named in the config".
const AUTO: &str = "auto";

/// The user's own names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Name and the id it stands for.
    pub aliases: Vec<(String, ModelId)>,
    /// What `auto` stands for: the first that is on offer.
    pub auto: Vec<ModelId>,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// The model.
    pub model: ModelId,
    /// The wish that was added to it.
    pub prefer: Option<Prefer>,
}

impl Names {
    /// What `asked` means while the models for which `is_offered` holds are on offer. A name that
    /// says nothing else means itself.
    #[must_use]
    pub fn resolve(&self, asked: &ModelId, is_offered: impl Fn(&ModelId) -> bool) -> Meaning {
        let itself = Meaning {
            model: asked.clone(),
            prefer: None,
        };
        if is_offered(asked) {
            return itself;
        }
        let (name, prefer) = match asked.as_str().rsplit_once(':') {
            Some((name, "cheap")) => (name, Some(Prefer::Cheap)),
            Some((name, "fast")) => (name, Some(Prefer::Fast)),
            _ => (asked.as_str(), None),
        };
        let alias = self.aliases.iter().find(|(alias, _)| alias == name);
        let model = match alias {
            Some((_, model)) => Some(model.clone()),
            None if name == AUTO => {
                let offered = self.auto.iter().find(|model| is_offered(model));
                offered.or(self.auto.first()).cloned()
            }
            None => prefer.map(|_| ModelId::new(name)),
        };
        model.map_or(itself, |model| Meaning { model, prefer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_unless_something_else_is_said() {
        let id = ModelId::new;
        let names = Names {
            aliases: vec![("gpt".into(), id("openai/gpt-4o"))],
            auto: vec![id("first"), id("second")],
        };
        let offered = [
            id("openai/gpt-4o"),
            id("llama3:8b"),
            id("odd:fast"),
            id("second"),
        ];
        let meaning = |asked: &str| {
            let found = names.resolve(&id(asked), |model| offered.contains(model));
            (found.model.to_string(), found.prefer)
        };
        assert_eq!(meaning("llama3:8b"), ("llama3:8b".into(), None));
        assert_eq!(meaning("odd:fast"), ("odd:fast".into(), None));
        assert_eq!(meaning("gpt"), ("openai/gpt-4o".into(), None));
        assert_eq!(
            meaning("gpt:cheap"),
            ("openai/gpt-4o".into(), Some(Prefer::Cheap))
        );
        assert_eq!(
            meaning("llama3:8b:fast"),
            ("llama3:8b".into(), Some(Prefer::Fast))
        );
        assert_eq!(meaning("auto"), ("second".into(), None));
        assert_eq!(meaning("auto:fast"), ("second".into(), Some(Prefer::Fast)));
        assert_eq!(meaning("nobody/sells"), ("nobody/sells".into(), None));
        let none = Names::default().resolve(&id("auto"), |_| false);
        assert_eq!(none.model, id("auto"));
    }
}
