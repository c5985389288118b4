package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"

	"batchtask.dev/operator/hack/localenv"
)

// runDev keeps everything running until ctx ends, which is no error.
func runDev(ctx context.Context, s *settings, out *output) error {
	opts, err := s.options(".dev", func(what string) { out.line("  %s", what) })
	if err != nil {
		return err
	}
	opts.DatabaseURL = os.Getenv("DATABASE_URL")
	out.heading("Starting")
	err = localenv.Run(ctx, opts, func(running context.Context, env *localenv.Env) error {
		fleet, err := createFleet(running, s, env)
		if err != nil {
			return err
		}
		defer fleet.Close()
		out.line("  devices: %d simulated ones of product %s, connected; %s look after their shadows", s.devices, productID, s.howMany())

		if env.DatabaseURL != "" {
			rows, err := createDatabaseFleet(running, env)
			if err != nil {
				return err
			}
			defer rows.Close()
			out.line("  devices: %d simulated ones of product %s, in the database", databaseDevices, databaseProductID)
		}

		// Last, and removed first: whoever sees the file can use what it names.
		file := filepath.Join(s.dir, localenv.EnvFile)
		exports, err := exports(env, opts.Assets)
		if err != nil {
			return err
		}
		if err := localenv.WriteExports(file, exports); err != nil {
			return err
		}
		defer func() { _ = os.Remove(file) }()
		out.text(welcome(file, env))
		<-running.Done()
		return nil
	})
	var other *localenv.RunningError
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("make dev is running already in this checkout, as process %s: use it (. %s/env), or end it first",
			other.PID, s.dir)
	case interrupted(ctx):
		out.line("\nEnded; everything is stopped.")
		return nil
	}
	return err
}

// interrupted reports whether the user wanted the end; what else went wrong then
// is of no interest.
func interrupted(ctx context.Context) bool { return ctx.Err() != nil }

// exports are the variables that reach the environment.
func exports(env *localenv.Env, assets string) ([]localenv.Export, error) {
	list := []localenv.Export{
		{Name: "KUBECONFIG", Value: env.KubeConfig},
		{Name: "BATCHTASK_NAMESPACE", Value: env.Namespace},
		{Name: "MQTT_URL", Value: env.MQTTURL},
		{Name: "BATCHTASK_API_URL", Value: env.APIURL},
		{Name: "BATCHTASK_SECRET_ID", Value: env.SecretID},
		{Name: "BATCHTASK_SECRET_KEY", Value: env.SecretKey},
	}
	if _, err := exec.LookPath("kubectl"); err == nil {
		return list, nil
	}
	path, err := filepath.Abs(assets)
	if err != nil {
		return nil, fmt.Errorf("looking for kubectl: %w", err)
	}
	return append(list, localenv.Export{Name: "PATH", Value: path, Prepend: true}), nil
}

func welcome(file string, env *localenv.Env) string {
	listen := ""
	broker, err := url.Parse(env.MQTTURL)
	if _, missing := exec.LookPath("mosquitto_sub"); missing == nil && err == nil && broker.Scheme == "tcp" && broker.User == nil {
		listen = fmt.Sprintf(`
  mosquitto_sub -h %s -p %s -v -t '%s/+/%s'    the messages of all devices
  mosquitto_sub -h %s -p %s -v -t '$shadow/operation/#'    what is said about shadows`,
			broker.Hostname(), broker.Port(), productID, topic, broker.Hostname(), broker.Port())
	}
	return fmt.Sprintf(`
Ready. In another terminal, in this folder:

  . %s

  kubectl apply -f config/samples/batchtask-update-shadow.yaml
  kubectl apply -f config/samples/batchtask-publish-message.yaml
  kubectl get bt -w                        watch the tasks
  kubectl describe bt open-doors           what became of one
  kubectl get device -o wide               the devices and their shadows
  kubectl explain bt.spec                  what a task can say%s
%s
Programs for the legacy HTTP API call %s with the SecretId and the
SecretKey in $BATCHTASK_SECRET_ID and $BATCHTASK_SECRET_KEY: "/v2/index.php" or "/".

Metrics: %s
Ctrl-C ends everything.
`, file, listen, aboutDatabase(env), env.APIURL, env.MetricsURL)
}

// aboutDatabase says what there is to try with the database, if there is one.
func aboutDatabase(env *localenv.Env) string {
	if env.DatabaseURL == "" {
		return ""
	}
	return fmt.Sprintf(`
  bin/batchtask fleet list %[1]s              the devices in the database
  sed 's/%[2]s/%[3]s/; s/-doors/-%[1]ss/; s/\^door/./' config/samples/batchtask-publish-message.yaml | kubectl apply -f -
  bin/batchtask task results close-%[1]ss     what became of each
`, databaseProduct, productID, databaseProductID)
}
