//! A model's chat template: messages and tools to the one text that the model was trained on.
//!
//! Templates are written for Python's Jinja2 as Hugging Face transformers sets it up; what differs
//! in minijinja is made the same here: how `True` and `None` are written, how JSON is spaced, Python's
//! methods of strings and maps. A template comes with a model, so its work is bounded.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde::Serialize as _;
use serde_json::Value;

/// Steps that one rendering may take; a conversation of a thousand messages takes a tenth of it.
const STEPS_MAX: u64 = 20_000_000;
/// The one template in its environment.
const NAME: &str = "chat";

/// Renders conversations.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    /// What the template calls these tokens by.
    bos: String,
    eos: String,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Where it is no Jinja.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |why: String| -> Result<Jinja, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.add_function("strftime_now", |format: String| {
            jiff::Zoned::now().strftime(&format).to_string()
        });
        environment.add_template_owned(NAME, without_training_marks(source))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The text of a conversation, up to where the model's answer begins.
    ///
    /// # Errors
    /// What the template has against it (roles out of turn, say), in its own words.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME)?;
        let text = template.render(context! {
            messages => messages,
            tools => tools,
            documents => Option::<String>::None,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
        })?;
        Ok(text)
    }
}

/// Why there is no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's chat template: {0}")]
pub struct TemplateError(String);

impl From<Error> for TemplateError {
    fn from(error: Error) -> Self {
        let why = error
            .detail()
            .map_or_else(|| error.to_string(), str::to_owned);
        Self(
            error
                .line()
                .map_or_else(|| why.clone(), |line| format!("{why} (line {line})")),
        )
    }
}

/// `{% generation %}` marks what is trained on, and means nothing here.
fn without_training_marks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        text.push_str(before);
        let word = tag.trim_matches(['{', '%', '}', '-', '+']).trim();
        if word == "generation" || word == "endgeneration" {
            // Nothing, with the same trimming on both sides.
            let trims = |is_trimmed: bool| if is_trimmed { "-" } else { "" };
            let (left, right) = (tag.starts_with("{%-"), tag.ends_with("-%}"));
            let _ = write!(
                text,
                "{{%{} if true %}}{{% endif {}%}}",
                trims(left),
                trims(right)
            );
        } else {
            text.push_str(tag);
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

/// `tojson` as transformers has it: not for HTML, and spaced as Python's `json.dumps` does.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let is_sorted: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let bad = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let value = value
        .serialize(serde_json::value::Serializer)
        .map_err(bad)?;
    let comma = if indent.is_some() { "," } else { ", " };
    let given = |at: usize| separators.as_ref().and_then(|both| both.get(at)).cloned();
    let style = Style {
        indent,
        comma: given(0).unwrap_or_else(|| comma.to_owned()),
        colon: given(1).unwrap_or_else(|| ": ".to_owned()),
        is_sorted: is_sorted == Some(true),
    };
    let mut text = String::new();
    style.write(&value, 0, &mut text);
    Ok(text)
}

struct Style {
    indent: Option<usize>,
    comma: String,
    colon: String,
    is_sorted: bool,
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) {
        match value {
            Value::Array(items) => {
                let each = items.iter().map(|item| (None, item)).collect();
                self.write_all(('[', ']'), each, depth, out);
            }
            Value::Object(fields) => {
                let mut each: Vec<_> = fields.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.is_sorted {
                    each.sort_by_key(|(key, _)| *key);
                }
                self.write_all(('{', '}'), each, depth, out);
            }
            plain => {
                let _ = write!(out, "{plain}");
            }
        }
    }

    fn write_all(
        &self,
        (open, close): (char, char),
        items: Vec<(Option<&String>, &Value)>,
        depth: usize,
        out: &mut String,
    ) {
        out.push(open);
        let is_empty = items.is_empty();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                out.push_str(&self.comma);
            }
            self.line(depth + 1, out);
            if let Some(key) = key {
                let _ = write!(out, "{}", Value::String(key.clone()));
                out.push_str(&self.colon);
            }
            self.write(item, depth + 1, out);
        }
        if !is_empty {
            self.line(depth, out);
        }
        out.push(close);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        templates: BTreeMap<String, String>,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Value>,
        tools: Option<Vec<Value>>,
        text: String,
    }

    #[test]
    fn conversations_become_the_text_that_transformers_make_of_them() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("reference/vectors.json")).unwrap();
        assert_eq!(vectors.cases.len(), 15);
        for case in vectors.cases {
            let source = &vectors.templates[&case.template];
            let template = Template::new(source, "<s>", "</s>").unwrap();
            let text = template.render(&case.messages, case.tools.as_deref());
            assert_eq!(text.as_deref(), Ok(case.text.as_str()), "{}", case.name);
        }
    }

    #[test]
    fn a_template_refuses_in_its_own_words() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let template = Template::new(source, "", "").unwrap();
        let error = template.render(&[], None).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(Template::new("{% if %}", "", "").is_err());
    }

    #[test]
    fn an_endless_template_ends() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let template = Template::new(source, "", "").unwrap();
        assert!(template.render(&[], None).is_err());
    }

    #[test]
    fn marks_for_training_change_nothing() {
        let source = "a {%- generation -%} b{% endgeneration %}c";
        let template = Template::new(source, "", "").unwrap();
        assert_eq!(template.render(&[json!({})], None), Ok("abc".to_owned()));
    }
}
