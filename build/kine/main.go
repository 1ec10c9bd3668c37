// Command kine is the etcd API on SQLite, on a unix socket.
//
// It is put together from upstream's packages instead of being upstream's main:
// that one takes its server from pkg/endpoint, which imports the drivers of all
// databases (MySQL, PostgreSQL, NATS, S3), half of the program. The flags have
// upstream's names and meanings. Those of the other drivers and of TLS are not here,
// and neither is listening on TCP, which would need TLS.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/metrics"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/signals"
	"github.com/k3s-io/kine/pkg/version"
	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// options are the flags. Their defaults are upstream's, but for the socket.
type options struct {
	socket         string
	driver         drivers.Config
	metrics        metrics.Config
	notifyInterval time.Duration
	etcdVersion    string
	debug          bool
	version        bool
}

func parse() (options, error) {
	var o options
	driver, pool := &o.driver, &o.driver.ConnectionPoolConfig
	flag.StringVar(&o.socket, "listen-address", "unix://kine.sock", "socket for clients of etcd, unix://PATH")
	flag.StringVar(&driver.Endpoint, "endpoint", "", "database, sqlite://PATH?PARAMETERS (default ./db/state.db)")
	flag.IntVar(&pool.MaxIdle, "datastore-max-idle-connections", 20, "idle connections to keep; none if negative")
	flag.IntVar(&pool.MaxOpen, "datastore-max-open-connections", 0, "connections to open; no limit if 0")
	flag.DurationVar(&pool.MaxLifetime, "datastore-connection-max-lifetime", 0, "how long a connection is used; no limit if 0")
	flag.DurationVar(&pool.MaxIdleTime, "datastore-connection-max-idle-time", 2*time.Minute, "how long a connection may be idle")
	flag.DurationVar(&driver.PollInterval, "datastore-poll-interval", time.Second, "interval of polls for rows that others wrote")
	flag.Int64Var(&driver.PollBatchSize, "poll-batch-size", 500, "revisions of a poll")
	flag.DurationVar(&driver.CompactInterval, "compact-interval", 0, "interval of compactions; the apiserver compacts if 0")
	flag.IntVar(&driver.CompactIntervalJitter, "compact-interval-jitter", 0, "jitter of compact-interval, in percent")
	flag.DurationVar(&driver.CompactTimeout, "compact-timeout", 5*time.Second, "how long a compaction may take")
	flag.Int64Var(&driver.CompactMinRetain, "compact-min-retain", 1000, "revisions that compaction keeps")
	flag.Int64Var(&driver.CompactBatchSize, "compact-batch-size", 1000, "revisions that are compacted at once")
	flag.StringVar(&o.metrics.ServerAddress, "metrics-bind-address", ":8080", "address of /metrics; none if 0")
	flag.BoolVar(&o.metrics.EnableProfiling, "metrics-enable-profiling", false, "serve /debug/pprof beside /metrics")
	flag.DurationVar(&metrics.SlowSQLThreshold, "slow-sql-threshold", time.Second, "log slower statements; none if 0")
	flag.DurationVar(&metrics.SlowSQLWarningThreshold, "slow-sql-warning-threshold", 5*time.Second, "warn of slower statements")
	flag.DurationVar(&o.notifyInterval, "watch-progress-notify-interval", 5*time.Second, "interval of progress in watches")
	// The apiserver asks for progress only of versions that are known to answer.
	flag.StringVar(&o.etcdVersion, "emulated-etcd-version", "3.6.11", "version of etcd to report")
	flag.BoolVar(&o.debug, "debug", false, "log details")
	flag.BoolVar(&o.version, "version", false, "print the version")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("kine takes flags only, not %q", flag.Args())
	}
	path, ok := strings.CutPrefix(o.socket, "unix://")
	if !ok {
		return o, fmt.Errorf("listen on %s: this kine listens on unix://PATH only", o.socket)
	}
	o.socket = path
	return o, nil
}

func main() {
	if err := run(); err != nil {
		logrus.Fatal(err)
	}
}

func run() error {
	o, err := parse()
	if err != nil {
		return err
	}
	if o.version {
		fmt.Println("kine version", version.Version)
		return nil
	}
	if o.debug {
		logrus.SetLevel(logrus.TraceLevel)
	}
	ctx := signals.SetupSignalContext()

	// The database outlives the server: what was accepted is written.
	database, closeDatabase := context.WithCancel(context.Background())
	var users sync.WaitGroup
	defer func() {
		closeDatabase()
		users.Wait()
	}()
	backend, err := openBackend(database, &users, o)
	if err != nil {
		return err
	}
	etcd := newServer()
	server.New(backend, "unix", o.notifyInterval, o.etcdVersion).Register(etcd)
	listener, err := listen(o.socket)
	if err != nil {
		return err
	}
	go metrics.Serve(ctx, o.metrics)
	return serve(ctx, etcd, listener)
}

// openBackend opens the database and starts what polls and compacts it.
func openBackend(ctx context.Context, users *sync.WaitGroup, o options) (server.Backend, error) {
	metrics.RegisterCoreCollectors()
	metrics.Registry.MustRegister(metrics.SQLTotal, metrics.SQLTime, metrics.CompactTotal, metrics.InsertErrorsTotal)
	o.driver.MetricsRegisterer = metrics.Registry
	_, backend, err := drivers.New(ctx, users, &o.driver)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	if err := backend.Start(ctx); err != nil {
		return nil, fmt.Errorf("start the database: %w", err)
	}
	return backend, nil
}

// newServer has etcd's limits, as the apiserver and its client expect them.
func newServer() *grpc.Server {
	const overhead = 512 << 10 // of gRPC, in bytes, as etcd and upstream reckon
	return grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: embed.DefaultGRPCKeepAliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:    embed.DefaultGRPCKeepAliveInterval,
			Timeout: embed.DefaultGRPCKeepAliveTimeout,
		}),
		grpc.MaxConcurrentStreams(embed.DefaultMaxConcurrentStreams),
		grpc.MaxRecvMsgSize(embed.DefaultMaxRequestBytes+overhead),
	)
}

// listen replaces the socket of a kine that was killed.
func listen(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	return listener, os.Chmod(socket, 0o600)
}

// serve answers until a signal comes. Watches never end: they get two seconds, as
// from upstream.
func serve(ctx context.Context, etcd *grpc.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(2*time.Second, etcd.Stop)
		defer timer.Stop()
		etcd.GracefulStop()
	})
	defer stop()
	logrus.Infof("Kine available at unix://%s", listener.Addr())
	if err := etcd.Serve(listener); ctx.Err() == nil {
		return fmt.Errorf("serve unix://%s: %w", listener.Addr(), err)
	}
	return nil
}
