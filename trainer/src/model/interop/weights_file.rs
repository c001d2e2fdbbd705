//! Tells what a file of weights is that is not a whole safetensors file, and what would be right.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What makes a safetensors file of one that `torch.save` wrote; Python alone reads those, since they are programs.
const CONVERT: &str = r#"python3 -c 'import sys, torch; from safetensors.torch import save_file; s = torch.load(sys.argv[1], "cpu", weights_only=True); s = s.get("state_dict", s); save_file({k: v.contiguous().clone() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])'"#;

/// The longest header that a safetensors file may have.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What a file is instead of a whole safetensors file, and what would be right; `None` for one that may be read.
pub(super) fn no_safetensors(path: &Path) -> std::io::Result<Option<String>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Ok(Some("not a file; expected a .safetensors file".into()));
    }
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let text = String::from_utf8_lossy(&start).trim_start().to_lowercase();
    let convert = || {
        let out = path.with_extension("safetensors");
        format!("convert it with\n  {CONVERT} {} {}", path.display(), out.display())
    };
    let is = |what: &str| Ok(Some(format!("{what}; expected a safetensors file")));
    match start.get(..4) {
        _ if start.is_empty() => return is("empty"),
        _ if text.starts_with("version https://git-lfs") => {
            return Ok(Some("a Git LFS pointer, not the weights themselves; download them with `git lfs pull`".into()));
        }
        _ if text.starts_with("<!doctype") || text.starts_with("<html") => {
            return is("an HTML page, perhaps of a download that needs a login");
        }
        Some(b"PK\x03\x04") => {
            return Ok(Some(format!("a PyTorch checkpoint (torch.save), not safetensors; {}", convert())));
        }
        Some([0x80, 2..=5, ..]) => {
            return Ok(Some(format!("a Python pickle (an old PyTorch checkpoint), not safetensors; {}", convert())));
        }
        Some(b"\x89HDF") => return is("an HDF5 file (Keras)"),
        Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]) => return is("a compressed file"),
        _ => {}
    }
    let Some(header) = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return is(&format!("not a safetensors file: only {} bytes", start.len()));
    };
    if header > MAX_HEADER_BYTES || start.get(8) != Some(&b'{') {
        return is("not a safetensors file: it does not begin with the length of a JSON header");
    }
    if header > meta.len() - 8 {
        let (there, needed) = (meta.len() - 8, header);
        return Ok(Some(format!(
            "truncated: {there} bytes follow the length of its header, which has {needed}; download it again"
        )));
    }
    let mut json = vec![0; header as usize];
    File::open(path)?.read_exact_at(&mut json, 8)?;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let end = |tensor: &serde_json::Value| tensor["data_offsets"][1].as_u64();
    let needed = json.as_object().into_iter().flatten().filter_map(|(_, tensor)| end(tensor)).max().unwrap_or(0);
    let there = meta.len() - 8 - header;
    Ok((needed > there)
        .then(|| format!("truncated: it holds {there} bytes of tensors, its header lists {needed}; download it again")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_safetensors_file_is_called_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.pth");
        let header = br#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
        let whole = |bytes: usize| [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; bytes]].concat();
        for (bytes, wanted) in [
            (b"".to_vec(), "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n".to_vec(), "git lfs pull"),
            (b"\n<!DOCTYPE html><html>".to_vec(), "HTML"),
            (b"PK\x03\x04rest".to_vec(), "torch.load"),
            (b"\x80\x02}q\0.".to_vec(), "torch.load"),
            (b"\x89HDF\r\n".to_vec(), "HDF5"),
            (b"short".to_vec(), "only 5 bytes"),
            (whole(15), "holds 15 bytes of tensors, its header lists 16"),
            (whole(0)[..20].to_vec(), "truncated"),
        ] {
            std::fs::write(&path, &bytes).unwrap();
            let found = no_safetensors(&path).unwrap().unwrap();
            assert!(found.contains(wanted), "{wanted}: {found}");
        }
        std::fs::write(&path, whole(16)).unwrap();
        assert_eq!(no_safetensors(&path).unwrap(), None);
        let found = no_safetensors(folder.path()).unwrap().unwrap();
        assert!(found.contains("not a file"), "{found}");
        assert!(no_safetensors(&folder.path().join("none")).is_err());
    }
}
