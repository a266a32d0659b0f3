package scripts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// prepare runs with-device.sh --prepare, by which `make test` decides whether to skip, with
// nothing in PATH but tools, and programs of fake: name and script.
func prepare(t *testing.T, tools []string, fake map[string]string) (status int, said string) {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is missing")
	}
	bin := t.TempDir()
	for _, name := range tools {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s is missing", name)
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range fake {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!"+bash+"\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bash, "with-device.sh", "--prepare")
	cmd.Env = []string{"PATH=" + bin, "MILLRACE_GUEST_CACHE=" + t.TempDir(), "DEBIAN_MIRROR=http://127.0.0.1:9"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// What is missing for a guest is named, with its fix, and nothing is left half done.
func TestWhyThereIsNoDevice(t *testing.T) {
	if out, _ := exec.Command("bash", "status.sh").Output(); !strings.Contains(string(out), "rdma_rxe=absent") {
		t.Skip("this kernel has rdma_rxe, and needs no guest")
	}
	// What the scripts use of every system.
	base := []string{"basename", "bash", "cat", "dirname", "env", "grep", "head", "id", "mkdir", "mktemp", "mv", "rm", "sed", "timeout", "uname"}
	nothing := "exit 0"
	for _, tc := range []struct {
		name  string
		tools []string
		fake  map[string]string
		want  []string
	}{
		{"no qemu", base, nil, []string{"qemu-system-x86_64 is missing", "fix: apt-get install"}},
		{"not Debian", append([]string{"flock"}, base...), map[string]string{"qemu-system-x86_64": nothing},
			[]string{"apt-get is missing", "fix: "}},
		{"no mirror", append([]string{"flock"}, base...),
			map[string]string{"qemu-system-x86_64": nothing, "apt-get": "echo 'E: cannot connect' >&2; exit 100", "apt-cache": nothing, "dpkg-deb": nothing},
			[]string{"E: cannot connect", "the packages could not be downloaded", "fix: DEBIAN_MIRROR="}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "no mirror" {
				if _, err := os.Stat("/usr/share/keyrings/debian-archive-keyring.gpg"); err != nil {
					t.Skip("debian-archive-keyring is missing")
				}
			}
			status, said := prepare(t, tc.tools, tc.fake)
			if status == 0 {
				t.Errorf("exit status 0; it said: %s", said)
			}
			for _, w := range tc.want {
				if !strings.Contains(said, w) {
					t.Errorf("it does not say %q but: %s", w, said)
				}
			}
		})
	}
}

// The guest's packages are downloaded, into its own folder, and never installed.
func TestPackagesAreOnlyDownloaded(t *testing.T) {
	if out, _ := exec.Command("bash", "status.sh").Output(); !strings.Contains(string(out), "rdma_rxe=absent") {
		t.Skip("this kernel has rdma_rxe, and needs no guest")
	}
	if _, err := os.Stat("/usr/share/keyrings/debian-archive-keyring.gpg"); err != nil {
		t.Skip("debian-archive-keyring is missing")
	}
	log := filepath.Join(t.TempDir(), "log")
	record := func(name string) string { return `echo ` + name + ` "$@" >>` + log }
	tools := []string{"basename", "bash", "cat", "dirname", "env", "find", "flock", "grep", "head", "id", "mkdir", "mv", "rm", "sed", "timeout", "uname"}
	status, said := prepare(t, tools, map[string]string{
		"qemu-system-x86_64": "exit 0", "apt-get": record("apt-get"), "dpkg-deb": record("dpkg-deb"), "dpkg": record("dpkg"),
		"apt-cache": "echo '  Depends: linux-image-6.1.0-1-amd64'",
	})
	if status == 0 {
		t.Errorf("a guest without a kernel: %s", said)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	seen := ""
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case words[0] == "dpkg-deb" && words[1] == "-x":
		case words[0] == "apt-get" && strings.Contains(line, "Dir::State="):
			for _, w := range words {
				if w == "update" || w == "download" {
					seen += w + " "
				}
			}
			if strings.Contains(line, " install ") {
				t.Errorf("it installs: %s", line)
			}
		default:
			t.Errorf("it runs %s", line)
		}
	}
	if seen != "update download " {
		t.Errorf("apt-get was asked to %s", seen)
	}
}
