//! Builds the images of the demo, the tests and the benchmarks from Debian packages, as OCI image layouts.
//!
//!   strata-images DIRECTORY [IMAGE …]      images: busybox nginx noexec nouser stubborn, which are the default, and those of the
//!                                          benchmarks: layers gzip-layers zstd-layer
//!
//! Each image becomes `DIRECTORY/<image>`, an OCI image layout with the tag `latest`, which skopeo copies to a registry. An
//! image that is there already is left as it is. The packages are Debian's newest of the machine's release, downloaded
//! into `DIRECTORY/packages`; nothing is installed. The same packages give the same digests.

mod filler;
mod layer;
mod layout;
mod packages;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use layer::Layer;
use layout::{Compression, Config, Image};
use packages::Packages;

/// What is taken from a package: not its documentation.
const LEFT_OUT: [&str; 6] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/info"];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: strata-images DIRECTORY [IMAGE ...]");
        return ExitCode::from(2);
    };
    let mut wanted: Vec<String> = arguments.collect();
    if wanted.is_empty() {
        wanted = ["busybox", "nginx", "noexec", "nouser", "stubborn"].map(str::to_owned).to_vec();
    }
    for name in wanted {
        if let Err(error) = build(&directory, &name) {
            eprintln!("strata-images: {name}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn build(directory: &Path, name: &str) -> Result<(), String> {
    let target = directory.join(name);
    if target.join("index.json").exists() {
        return Ok(());
    }
    let packages = Packages::new(&directory.join("packages"));
    let image = match name {
        "busybox" => busybox(&packages)?,
        "nginx" => nginx(&packages)?,
        "layers" => filler::image(&filler::LAYERS),
        "gzip-layers" => filler::image(&filler::GZIP_LAYERS),
        "zstd-layer" => filler::image(&filler::ZSTD_LAYER),
        "noexec" => noexec(&packages)?,
        "nouser" => Image { config: Config { user: "nosuchuser".to_owned(), ..shell() }, ..busybox(&packages)? },
        "stubborn" => stubborn(&packages)?,
        _ => return Err("no such image: busybox nginx layers gzip-layers zstd-layer noexec nouser stubborn".to_owned()),
    };
    println!("building {name} in {}", target.display());
    image.write(&target, if name.starts_with("zstd") { Compression::Zstd } else { Compression::Gzip })
}

fn shell() -> Config {
    Config { env: vec![PATH.to_owned()], command: vec!["sh".to_owned()], ..Config::default() }
}

/// A static busybox with its applets, users and a /tmp: one layer.
fn busybox(packages: &Packages) -> Result<Image, String> {
    Ok(Image { layers: vec![busybox_layer(packages)?], config: shell() })
}

fn busybox_layer(packages: &Packages) -> Result<Layer, String> {
    let mut layer = Layer::default();
    for directory in ["bin", "etc", "proc", "sys", "dev", "root", "run", "usr", "usr/bin", "usr/sbin", "sbin", "var"] {
        layer.directory(directory, 0o755);
    }
    layer.directory("tmp", 0o1777);
    layer.directory("home", 0o755);
    let unpacked = packages.files("busybox-static")?;
    let program = unpacked.iter().find(|entry| entry.path.ends_with("bin/busybox")).ok_or("no bin/busybox")?;
    layer.file("bin/busybox", 0o755, program.data.clone());
    for applet in packages.busybox_applets()? {
        if applet != "busybox" {
            layer.symlink(&format!("bin/{applet}"), "busybox");
        }
    }
    users(&mut layer);
    Ok(layer)
}

fn users(layer: &mut Layer) {
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
        www-data:x:33:33:www-data:/var/www:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n\
        nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    let group = "root:x:0:\ndaemon:x:1:\nadm:x:4:\naudio:x:29:user\nwww-data:x:33:\nusers:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n";
    layer.file("etc/passwd", 0o644, passwd.into());
    layer.file("etc/group", 0o644, group.into());
    layer.file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files dns\n".to_vec());
}

/// Debian's nginx in three layers: the base system, the libraries, and nginx with a page.
fn nginx(packages: &Packages) -> Result<Image, String> {
    let mut base = busybox_layer(packages)?;
    let mut libraries = Layer::default();
    let mut server = Layer::default();
    for package in ["libc6", "libcrypt1"] {
        base.add(packages.files(package)?, &LEFT_OUT);
    }
    for package in ["libpcre2-8-0", "libssl3", "zlib1g"] {
        libraries.add(packages.files(package)?, &LEFT_OUT);
    }
    for package in ["nginx-common", "nginx"] {
        server.add(packages.files(package)?, &LEFT_OUT);
    }
    for directory in ["var/log/nginx", "var/lib/nginx", "var/www/html", "run"] {
        server.directory(directory, 0o755);
    }
    server.symlink("var/log/nginx/access.log", "/dev/stdout");
    server.symlink("var/log/nginx/error.log", "/dev/stderr");
    server.file("var/www/html/index.html", 0o644, PAGE.into());
    server.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF.into());
    let command = ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec();
    let config = Config {
        command,
        stop_signal: "SIGQUIT".to_owned(),
        exposed: vec!["80/tcp".to_owned()],
        env: vec![PATH.to_owned(), "NGINX_SOURCE=debian".to_owned()],
        ..Config::default()
    };
    Ok(Image { layers: vec![base, libraries, server], config })
}

/// Its entrypoint is a file without permission to execute.
fn noexec(packages: &Packages) -> Result<Image, String> {
    let mut layer = busybox_layer(packages)?;
    layer.file("start", 0o644, b"#!/bin/sh\necho never\n".to_vec());
    Ok(Image { layers: vec![layer], config: Config { entrypoint: vec!["/start".to_owned()], ..shell() } })
}

/// Its program ignores SIGTERM, and its image says so: two layers, a whiteout, a working directory, labels.
fn stubborn(packages: &Packages) -> Result<Image, String> {
    let mut first = busybox_layer(packages)?;
    first.file("etc/motd", 0o644, b"hidden by the second layer\n".to_vec());
    first.directory("opt", 0o755);
    first.file("opt/old", 0o644, b"hidden by an opaque directory\n".to_vec());
    let mut second = Layer::default();
    second.file("etc/.wh.motd", 0o644, Vec::new());
    second.directory("opt", 0o755);
    second.file("opt/.wh..wh..opq", 0o644, Vec::new());
    second.file("opt/new", 0o644, b"new\n".to_vec());
    second.file("bin/stubborn", 0o755, b"#!/bin/sh\ntrap '' TERM\necho ready\nwhile :; do sleep 1; done\n".to_vec());
    let config = Config {
        command: vec!["stubborn".to_owned()],
        working_dir: "/opt".to_owned(),
        labels: vec![("org.example.kind".to_owned(), "stubborn".to_owned())],
        ..shell()
    };
    Ok(Image { layers: vec![first, second], config })
}

const PAGE: &str = "<!doctype html>\n<title>Strata</title>\n<h1>Hello from nginx on Strata</h1>\n";

const NGINX_CONF: &str = "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr;\n\
events { worker_connections 256; }\n\
http {\n    include /etc/nginx/mime.types;\n    access_log /dev/stdout;\n    sendfile on;\n    \
server {\n        listen 80 default_server;\n        root /var/www/html;\n        index index.html;\n    }\n}\n";
