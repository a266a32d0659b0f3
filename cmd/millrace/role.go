package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/millrace/millrace/bench/role"
	"github.com/millrace/millrace/bench/roles"
)

// roleName is the hidden command that the benchmark starts its processes with.
const roleName = "role"

func roleCommand() *cobra.Command {
	return &cobra.Command{
		Use:    roleName,
		Short:  "One process of a benchmark",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			os.Exit(role.Serve(os.Stdin, os.Stdout, roles.All))
			return nil
		},
	}
}
