//! GRUB's environment block: what is read is written back the same, and in one sector.
#![no_main]

use fuzz_targets::assert_printable;
use libfuzzer_sys::fuzz_target;
use slotd::domain::envblk::{DEFAULT, EnvblkError, Environment, ONE_SHOT, SIZE, WRITE_LIMIT, parse};

fn sorted(environment: &Environment) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut variables: Vec<_> = environment.variables().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    variables.sort();
    variables
}

fn judge(environment: &Environment) {
    match environment.render() {
        Ok(block) => {
            assert!(block[WRITE_LIMIT..].iter().all(|byte| *byte == b'#'), "more than one sector");
            let again = parse(&block);
            assert!(again.is_ok(), "what was written cannot be read: {again:?}");
            let again = again.unwrap_or_default();
            assert!(sorted(&again) == sorted(environment), "{environment:?} became {again:?}");
            assert!(again.render() == Ok(block), "writing twice differs");
        }
        Err(EnvblkError::TooLong { found }) => assert!(found > WRITE_LIMIT),
        Err(error) => unreachable!("{error}"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let mut block = if mode & 1 == 1 { b"# GRUB Environment Block\n".to_vec() } else { Vec::new() };
    block.extend_from_slice(data);
    if mode & 2 == 2 {
        block.resize(SIZE, b'#');
    }
    let mut environment = match parse(&block) {
        Ok(environment) => environment,
        Err(error) => return assert_printable(&error),
    };
    judge(&environment);
    // What slotd does: one variable is set, all others stay.
    let value: &[u8] = data.get(..usize::from(*mode) / 4).unwrap_or(b"sps-slot-2");
    let before = sorted(&environment);
    if environment.set(ONE_SHOT, value).is_ok() {
        assert!(environment.get(ONE_SHOT) == Some(value));
        judge(&environment);
        let others = |all: Vec<(Vec<u8>, Vec<u8>)>| -> Vec<_> {
            all.into_iter().filter(|(name, _)| name != ONE_SHOT.as_bytes()).collect()
        };
        assert!(others(sorted(&environment)) == others(before));
    }
    environment.unset(DEFAULT);
    assert!(environment.get(DEFAULT).is_none());
    judge(&environment);
});
