//! CMS signature over the manifest.
