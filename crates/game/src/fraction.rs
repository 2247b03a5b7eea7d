//! Numbers written the way the field writes them: `8/255`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number and how it was written: `"8/255"`, `"0.05"` or a plain TOML or JSON number.
///
/// The text is what is hashed, stored and printed; the value is what is computed with.
#[derive(Clone, Debug, PartialEq)]
pub struct Fraction {
    text: String,
    value: f64,
}

impl Fraction {
    /// The number.
    #[must_use]
    pub const fn value(&self) -> f64 {
        self.value
    }

    /// The number as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Fraction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((over, under)) => number(over).zip(number(under)).map(|(over, under)| over / under),
            None => number(text),
        };
        match value {
            Some(value) if value.is_finite() => Ok(Self { text: text.trim().to_owned(), value }),
            _ => Err(format!("`{text}` is not a number; write it as 8/255, 0.05 or 3")),
        }
    }
}

impl From<f64> for Fraction {
    /// # Panics
    /// If the number is not finite.
    fn from(value: f64) -> Self {
        assert!(value.is_finite(), "a parameter must be finite, not {value}");
        Self { text: value.to_string(), value }
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Fraction;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a text such as \"8/255\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Fraction, E> {
                if value.is_finite() { Ok(value.into()) } else { Err(E::custom(format!("{value} is not finite"))) }
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Fraction, E> {
                Ok((value as f64).into())
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Fraction, E> {
                Ok((value as f64).into())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fraction, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_keep_their_text() {
        let eps: Fraction = "8/255".parse().unwrap();
        assert_eq!((eps.value(), eps.text()), (8.0 / 255.0, "8/255"));
        assert_eq!(Fraction::from(0.25).text(), "0.25");
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in ["8/0", "eight", "", "8/255/2", "inf"] {
            assert!(text.parse::<Fraction>().unwrap_err().contains("8/255"), "{text}");
        }
    }
}
