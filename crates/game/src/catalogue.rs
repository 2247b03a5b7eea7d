//! Catalogues: closed sets of things that a parameter file can name.

/// What a thing must say to be named in a parameter file, beside what it does.
pub trait Entry: Default {
    /// One line for listings.
    const ABOUT: &'static str;

    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// One sentence: the parameter, its value, and what it must be.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    /// Parameters worth testing, small ones first.
    #[must_use]
    fn examples() -> Vec<Self> {
        vec![Self::default()]
    }

    /// A few letters for file names, given the name in the catalogue; for eyes only.
    fn slug(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// Makes `enum Spec`, the parameters of any thing in a catalogue, one line per thing.
///
/// `catalogue! { dyn Defense { "rotation" => Rotation, ... } }`: each type implements [`Entry`], the trait, `serde`'s
/// traits (with `#[serde(default, deny_unknown_fields)]`), `Clone`, `Debug` and `PartialEq`. In JSON and TOML the field
/// `name` tells which thing the other fields are about.
#[macro_export]
macro_rules! catalogue {
    ($(#[$meta:meta])* dyn $object:ident { $($name:literal => $kind:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(tag = "name")]
        pub enum Spec {
            $(
                #[doc = concat!("`", $name, "`")]
                #[serde(rename = $name)]
                $kind($kind),
            )+
        }

        $(
            impl From<$kind> for Spec {
                fn from(parameters: $kind) -> Self {
                    Self::$kind(parameters)
                }
            }
        )+

        impl Spec {
            /// Every name, in the catalogue's order.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// Every name with one line about it.
            pub const ABOUT: &'static [(&'static str, &'static str)] =
                &[$(($name, <$kind as $crate::Entry>::ABOUT)),+];

            /// The name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $name,)+
                }
            }

            /// The thing itself.
            #[must_use]
            pub fn build(&self) -> &dyn $object {
                match self {
                    $(Self::$kind(parameters) => parameters,)+
                }
            }

            /// Whether the parameters make sense.
            ///
            /// # Errors
            /// One sentence: the thing, the parameter, its value, and what it must be.
            pub fn check(&self) -> Result<(), String> {
                match self {
                    $(Self::$kind(parameters) => $crate::Entry::check(parameters),)+
                }
                .map_err(|error| format!("{}: {error}", self.name()))
            }

            /// Parameters worth testing, of everything in the catalogue.
            #[must_use]
            pub fn examples() -> Vec<Self> {
                let mut examples = Vec::new();
                $(examples.extend(<$kind as $crate::Entry>::examples().into_iter().map(Self::$kind));)+
                examples
            }

            /// A few letters for file names; for eyes only.
            #[must_use]
            pub fn slug(&self) -> String {
                match self {
                    $(Self::$kind(parameters) => $crate::Entry::slug(parameters, $name),)+
                }
            }
        }
    };
}
