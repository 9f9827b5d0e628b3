// etcd, etcdctl and the part of etcdutl that restores backups, as one static program that goes by the name it is started
// with. Its modules are pinned in go.mod and go.sum; scripts/package builds it.
package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "etcdctl":
		ctlv3.MustStart()
	case "etcdutl":
		root := &cobra.Command{Use: "etcdutl"}
		root.AddCommand(etcdutl.NewSnapshotCommand(), etcdutl.NewDefragCommand(), etcdutl.NewHashKVCommand(), etcdutl.NewVersionCommand())
		if root.Execute() != nil {
			os.Exit(1)
		}
	default:
		etcdmain.Main(os.Args)
	}
}
