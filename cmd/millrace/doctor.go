package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/internal/doctor"
	"github.com/millrace/millrace/internal/transports"
)

var errNotWell = errors.New("doctor: something that millrace wants by default is missing (see above)")

func doctorCommand() *cobra.Command { return doctorCommandOn(thisHost) }

func doctorCommandOn(host func() *doctor.Host) *cobra.Command {
	var asJSON, fix bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this machine offers to millrace, what is missing and how to mend it",
		Long: `Tell what this machine offers to millrace, what is missing and how to mend it.

--fix does what is safe and can be undone, as root: it reserves huge pages, raises the limits of UDP
buffers and loads the modules of Soft-RoCE and of vfio, until the next boot, and says how to undo each. To keep it, write the
settings to /etc/sysctl.d and the modules' names to /etc/modules-load.d. Without root it says what it would run.

Exit status: 0 if every default transport runs; 1 if something that millrace wants by default is missing.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h := host()
			r := doctor.Examine(cmd.Context(), h)
			if fix {
				r = doctor.Fix(cmd.Context(), h, r)
			}
			write := r.WriteText
			if asJSON {
				write = r.WriteJSON
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if !r.OK {
				return errNotWell
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write the report as JSON")
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what can be mended safely")
	cmd.AddCommand(doctorProbeCommand())
	return cmd
}

func thisHost() *doctor.Host {
	h := doctor.This()
	h.Version = version
	h.Sibling = sibling
	h.Probe = probeElsewhere
	return h
}

// probeName is the hidden command that asks one device.
const probeName = "probe"

// probeAnswer goes from doctorProbeCommand to probeElsewhere.
type probeAnswer struct {
	Unavailable *transports.Unavailable `json:"unavailable"`
}

func doctorProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    probeName + " TRANSPORT DEVICE",
		Short:  "Ask one device whether it runs",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			un, err := doctor.ProbeHere(args[0], args[1])
			if err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(probeAnswer{un})
		},
	}
}

// probeElsewhere is doctor.ProbeHere in another process.
func probeElsewhere(ctx context.Context, transport, device string) (*transports.Unavailable, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "doctor", probeName, transport, device)
	cmd.WaitDelay = time.Second // what it started may hold its output open
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, strings.TrimSpace(said.String()))
	}
	var a probeAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		return nil, fmt.Errorf("it said %q", out)
	}
	return a.Unavailable, nil
}
