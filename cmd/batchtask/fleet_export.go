package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/transfer"
	"batchtask.dev/operator/internal/fleet/transfer/devicefile"
)

// Values of -o.
const (
	outputTable = "table"
	outputName  = "name"
	outputJSON  = "json"
	outputCSV   = "csv"
)

func checkOutput(output string, known ...string) error {
	if slices.Contains(known, output) {
		return nil
	}
	return fmt.Errorf("-o %s: must be %s", output, strings.Join(known, ", "))
}

func fleetExportCommand(cluster *clusterOptions) *cobra.Command {
	var format string
	var shadows bool
	cmd := &cobra.Command{
		Use:   "export PRODUCT",
		Short: "Write all devices to standard output, in the order of their names",
		Long: `Write all devices of a Product to standard output, in the order of their names, as
"batchtask fleet import" reads them.

With --shadows, also the version, the reported and the desired part of each shadow. The
times of their fields are not written: an import gives them its own.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format, false); err != nil {
				return err
			}
			return withFleet(cmd, cluster, args[0], func(ctx context.Context, _ *v1alpha1.Product, from transfer.Fleet) error {
				out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
				w, err := devicefile.NewWriter(out, devicefile.Format(format), shadows)
				if err != nil {
					return err
				}
				n := 0
				for d, err := range from.Export(ctx, shadows) {
					if err == nil {
						err = w.Write(d)
					}
					if err != nil && n == 0 {
						return err // and no header, which would look like a product without devices
					}
					if err != nil {
						return errors.Join(fmt.Errorf("ended early, after %d devices: %w", n, err), w.Flush(), out.Flush())
					}
					n++
				}
				return errors.Join(w.Flush(), out.Flush())
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", string(devicefile.CSV), "csv or ndjson")
	cmd.Flags().BoolVar(&shadows, "shadows", false, "write the shadows too")
	return cmd
}

func fleetListCommand(cluster *clusterOptions) *cobra.Command {
	var pattern, output string
	cmd := &cobra.Command{
		Use:   "list PRODUCT",
		Short: "List devices, in the order of their names",
		Example: `  batchtask fleet list door --filter '^door'
  batchtask fleet list door -o name | wc -l`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, outputTable, outputName, outputJSON); err != nil {
				return err
			}
			filter, err := regexp.Compile(pattern)
			if err != nil {
				return fmt.Errorf("--filter=%s: it is no regular expression in RE2 syntax: %w", pattern, err)
			}
			return withFleet(cmd, cluster, args[0], func(ctx context.Context, _ *v1alpha1.Product, from transfer.Fleet) error {
				rows := newRows(cmd.OutOrStdout(), output, "DEVICE", "DISABLED", "VERSION", "CHANGED")
				for d, err := range from.Export(ctx, false) {
					if err == nil && filter.MatchString(d.Name) {
						err = rows.write(listed(d), d.Name, strconv.FormatBool(d.Disabled), strconv.FormatInt(d.Shadow.Version, 10), when(d.Shadow.Timestamp))
					}
					if err != nil {
						return rows.finish(err)
					}
				}
				return rows.finish(nil)
			})
		},
	}
	cmd.Flags().StringVar(&pattern, "filter", "", "regular expression (RE2) that matches anywhere in the name, as in a task's deviceNameFilter")
	cmd.Flags().StringVarP(&output, "output", "o", outputTable, "table, name, or json: one object a line")
	return cmd
}

// listedDevice is a device in a list of JSON.
type listedDevice struct {
	Name      string `json:"deviceName"`
	Disabled  bool   `json:"disabled"`
	Version   int64  `json:"version"`
	Timestamp int64  `json:"timestamp"`
}

func listed(d devicefile.Device) listedDevice {
	return listedDevice{d.Name, d.Disabled, d.Shadow.Version, d.Shadow.Timestamp}
}

// when returns Unix milliseconds as a person reads them.
func when(milliseconds int64) string {
	if milliseconds == 0 {
		return "-"
	}
	return time.UnixMilli(milliseconds).UTC().Format(time.RFC3339)
}
