package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/internal/doctor"
	"github.com/millrace/millrace/internal/transports"
)

// hostUnderTest is this machine, less what would start other programs.
func hostUnderTest() *doctor.Host {
	h := doctor.This()
	h.Version = "test"
	h.Sibling = func(context.Context) (string, error) { return "", fs.ErrNotExist }
	h.Probe = func(context.Context, string, string) (*transports.Unavailable, error) { return nil, nil }
	h.UID = 1000 // repairs nothing
	return h
}

func TestDoctorCommand(t *testing.T) {
	noUDP := func() *doctor.Host {
		h := hostUnderTest()
		h.SocketBuffers = func(int) (int, int, error) { return 0, 0, unix.EPERM }
		return h
	}
	for _, tc := range []struct {
		name string
		host func() *doctor.Host
		args []string
		err  error
		json bool
		want string
	}{
		{"text", hostUnderTest, []string{}, nil, false, "All default transports run."},
		{"JSON", hostUnderTest, []string{"--json"}, nil, true, `"transport": "dpdk"`},
		{"fix without root", hostUnderTest, []string{"--fix", "--json"}, nil, true, `"ok": true`},
		{"something is missing", noUDP, []string{}, errNotWell, false, "missing   user-space rdma"},
		{"something is missing, JSON", noUDP, []string{"--json"}, errNotWell, true, `"ok": false`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := doctorCommandOn(tc.host)
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetArgs(tc.args)
			if err := cmd.Execute(); !errors.Is(err, tc.err) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if !strings.Contains(out.String(), tc.want) {
				t.Errorf("%q is not in:\n%s", tc.want, out.String())
			}
			var r doctor.Report
			if err := json.Unmarshal(out.Bytes(), &r); tc.json && (err != nil || len(r.Checks) == 0 || len(r.Transports) < 3) {
				t.Errorf("%d checks, %d transports, %v", len(r.Checks), len(r.Transports), err)
			}
		})
	}
}

func TestWhichCommandsWantCLibraries(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                  false,
		"doctor --json":                     true,
		"bench --quick":                     true,
		"broker --listen tcp://127.0.0.1:1": false,
		"broker --listen dpdk://127.0.0.1:1 --data d":                      false, // memif in pure Go
		"broker --listen dpdk://127.0.0.1:1?port=memif":                    false,
		"broker --listen dpdk://127.0.0.1:1?port=net_memif":                true,
		"proxy --listen tcp://[::1]:1 --broker=dpdk://h:2?port=net_memif0": true,
		"produce --topic port=net_memif":                                   false,
		"produce --to rdma://127.0.0.1:1?device=rxe0":                      true,
		"produce --to rdma://127.0.0.1:1":                                  false, // the engine in pure Go
		"produce --to rdma://127.0.0.1:1?device=softroce+udp":              false,
	} {
		if got := wantsNative(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}
