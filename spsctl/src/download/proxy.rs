//! The proxy: the one of the command line, else the one of the environment.

use crate::error::CtlError;

/// What the environment says about proxies. Lower-case names come first, as with other programs.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    proxy: Option<String>,
    no_proxy: Option<String>,
}

impl Environment {
    /// Of this process.
    pub fn of_process() -> Self {
        let first = |names: &[&str]| {
            names.iter().filter_map(|name| std::env::var(name).ok()).find(|text| !text.is_empty())
        };
        Self {
            proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
        }
    }
}

/// The proxy for `host`. A password may stand in the environment, which only its owner can read, and never on the
/// command line.
pub(super) fn choose(
    given: Option<&str>,
    environment: &Environment,
    host: &str,
) -> Result<Option<ureq::Proxy>, CtlError> {
    let (text, place) = match (given, &environment.proxy) {
        (Some(text), _) if text.contains('@') => {
            let what =
                "--proxy: a user name or a password there could be seen by others; set https_proxy instead";
            return Err(CtlError::Usage(what.to_owned()));
        }
        (Some(text), _) => (text, "--proxy"),
        (None, Some(text)) if !bypassed(host, environment.no_proxy.as_deref()) => {
            (text.as_str(), "https_proxy")
        }
        _ => return Ok(None),
    };
    let proxy = ureq::Proxy::new(text)
        .ok()
        .filter(|proxy| matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https));
    let wrong =
        || CtlError::Usage(format!("{place}: not the URL of an HTTP proxy; expected http://HOST:PORT"));
    proxy.map(Some).ok_or_else(wrong)
}

/// Whether `no_proxy` names the host: itself, a domain it is in, or `*`.
fn bypassed(host: &str, no_proxy: Option<&str>) -> bool {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    no_proxy.unwrap_or_default().split([',', ' ']).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.trim_matches(['[', ']']).trim_start_matches("*.").trim_start_matches('.');
        let entry = entry.to_ascii_lowercase();
        entry == "*" || host == entry || host.strip_suffix(&entry).is_some_and(|rest| rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(proxy: &str, no_proxy: &str) -> Environment {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Environment { proxy: some(proxy), no_proxy: some(no_proxy) }
    }

    fn host_of(given: Option<&str>, environment: &Environment) -> Option<String> {
        choose(given, environment, "up.example.com").unwrap().map(|proxy| proxy.host().to_owned())
    }

    #[test]
    fn command_line_comes_before_the_environment() {
        let both = environment("http://env:3128", "*");
        assert_eq!(host_of(Some("http://given:1"), &both), Some("given".to_owned()));
        assert_eq!(host_of(None, &environment("env:3128", "")), Some("env".to_owned()));
        assert_eq!(host_of(None, &Environment::default()), None);
    }

    #[test]
    fn no_proxy_names_hosts_and_domains() {
        for list in ["up.example.com", "example.com", ".example.com", "*.example.com", "a, EXAMPLE.com", "*"]
        {
            assert!(bypassed("up.example.com", Some(list)), "{list}");
        }
        for list in ["", "ample.com", "down.example.com", "com.example"] {
            assert!(!bypassed("up.example.com", Some(list)), "{list}");
        }
        assert!(bypassed("[::1]", Some("::1")));
        assert_eq!(host_of(None, &environment("http://env:3128", "example.com")), None);
    }

    #[test]
    fn passwords_and_other_proxies_are_refused_and_not_repeated() {
        for given in ["http://me:secret@proxy:1", "socks5://proxy:1", "http://"] {
            let error = choose(Some(given), &Environment::default(), "x").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        // From the environment a password is taken.
        let proxy = choose(None, &environment("http://me:secret@proxy:1", ""), "x").unwrap().unwrap();
        assert_eq!(proxy.password(), Some("secret"));
        assert!(!format!("{proxy:?}").contains("secret"));
    }
}
